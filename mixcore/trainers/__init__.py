"""mixcore under existing trainers: one module a trainer; `settings` is what they share."""
