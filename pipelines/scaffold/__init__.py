"""Write a recipe for data of one's own: look at them, guess, say why. Imports no torch."""
