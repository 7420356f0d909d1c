"""Ray pipeline from video clips to captions, a silent captioner and sound: the only package that knows Ray."""
