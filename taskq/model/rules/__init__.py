"""Pure rules that engines share, with each other and with clients of a database."""
