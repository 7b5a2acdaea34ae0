"""Matrix products and convolutions of spikes or dense activations with N:M sparse weights."""
