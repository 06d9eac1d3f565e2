"""What Kotae does, without HTTP: vocabulary, ground, services, and the plot in `answer`."""
