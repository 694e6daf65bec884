"""A page in the browser that shows what a result does, here or as a Space of the Hub."""
