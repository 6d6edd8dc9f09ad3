"""The nouns: norms, operators, activations, maps, explicit weights, records."""
