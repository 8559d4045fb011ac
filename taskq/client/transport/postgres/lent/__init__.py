"""`TaskQ.within`: jobs that come in with a transaction of the application, on a connection that it lends."""
