"""Distributions over a vocabulary in few bytes: `codec` says what is kept of one, `rows` how that lies in bits."""
