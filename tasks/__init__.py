"""The steps of a rotation: each is a plain async function, wrapped as a Prefect task."""
