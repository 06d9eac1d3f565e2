"""What Kotae does, without HTTP: vocabulary, ground, rooms, and the plot in `answer`."""
