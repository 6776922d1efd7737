"""What the builder is assembled from: run folders, what is written while a run trains, and the test of its models; and
what it knows of a learner.
"""
