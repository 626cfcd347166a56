"""Router, experts, losses and the layer they make."""
