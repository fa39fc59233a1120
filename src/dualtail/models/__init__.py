"""Foundation models and what is trained on them: backbones, text features, tuners, heads, classifiers."""
