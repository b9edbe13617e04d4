"""The wire side of subscriptions: requests checked and read, answers written, a few lines an RPC."""
