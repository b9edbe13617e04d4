"""What each account's plan allows."""
