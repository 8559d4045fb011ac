"""What a broker shares with one consumer: the inbox, the counters, the boot, unsent outcomes, the flight recorder."""
