"""What the learner is assembled from: choices of the algorithm as small pure pieces, and how a step is carried out."""
