<<<<<<< HEAD
"""mixcore under existing trainers: one module a trainer; `settings` is what they share."""
=======
"""Adapters that put a ledger and a controller under other people's trainers."""
>>>>>>> trainers
