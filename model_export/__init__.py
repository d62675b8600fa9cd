"""A training run or published weights in, a model folder out, verified before it appears."""
