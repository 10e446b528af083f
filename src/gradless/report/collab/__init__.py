"""Tables, figures and the page of collaborative runs."""
