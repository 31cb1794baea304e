"""What the Hub and the CAS say, through net; nothing here knows who is asking."""
