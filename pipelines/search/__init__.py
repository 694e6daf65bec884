"""Search the values of a recipe's parameters: a study of trials, each an ordinary run."""
