"""What clients and brokers say to a PostgreSQL database: values, statements and plans. No I/O, and no driver: whoever
speaks to the database, in whatever way, may come in."""
