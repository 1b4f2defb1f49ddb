"""``contrastneg analyze``: what the negatives of an encoder are, as tables, answers and a page to look through."""
