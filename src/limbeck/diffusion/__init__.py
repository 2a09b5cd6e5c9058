"""Generators that denoise: noise schedules, what networks predict, guidance, sampling, and what methods share that teach them."""
