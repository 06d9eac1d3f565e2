// Runs before the first paint, so that the chosen theme does not flash. Without a choice the system's scheme applies.
try {
  document.documentElement.dataset.theme = localStorage.getItem("kotae.theme") ?? "";
} catch {
  // storage is forbidden: the system's scheme applies
}
