// The storage of this browser. If it is forbidden or full, values last as long as the page.

export function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // forbidden: see above
  }
}

export function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

export function forget(name) {
  try {
    localStorage.removeItem(name);
  } catch {
    // forbidden or full: see above
  }
}
