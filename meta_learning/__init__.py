"""What the learner is assembled from: choices of the algorithm as small pure pieces, and how a step is carried out."""

# With it comes `utils`, which finds modules under the names that they had before; a script may import such a one first.
from utils import errors  # noqa: F401
