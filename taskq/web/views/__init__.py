"""What each page shows: a view asks the fleet through the client, and answers a `Page`."""
