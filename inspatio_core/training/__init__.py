"""Training by the paper's three stages: teacher, multi-condition causal initialisation, joint distillation."""
