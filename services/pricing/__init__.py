"""Owns the price catalogue, plans, and what follows from them: costs, estimates, tiers, overage, recommendations."""
