"""Owns what moves by itself or moves money: proration, invoices, payments, time, events and their delivery."""
