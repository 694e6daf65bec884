"""Results on the Hub: pin revisions, load, publish, the model card, a local Hub for trying."""
