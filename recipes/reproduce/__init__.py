"""The paper in miniature: what is run (`plan`), how (`run`, `job`), what came out (`findings`) and the `report`."""
