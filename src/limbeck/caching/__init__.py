"""Caches: a teacher asked once, its answers kept. `form` says how they lie, `packing` how a signal does, `filling` makes one."""
