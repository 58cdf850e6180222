"""The mixture under other people's trainers."""
