"""Update rules of the inner loop, one per file: what a step does with the gradient of the support loss."""
