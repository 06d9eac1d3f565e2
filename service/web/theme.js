// Runs before the first paint, so that a chosen theme does not flash. Without a choice the system's scheme stands.
try {
  document.documentElement.dataset.theme = localStorage.getItem("kotae.theme") ?? "";
} catch {
  // storage is forbidden here: the system's scheme stands
}
