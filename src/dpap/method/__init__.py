"""The method as equations: plasticity, survival, scores, rules and schedule. Nothing here knows of networks."""
