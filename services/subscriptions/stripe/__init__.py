"""Everything that subscriptions asks of Stripe, and what it does about what Stripe tells."""
