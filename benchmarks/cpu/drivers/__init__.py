"""One program per engine. Each runs in the environment that holds its engine, and imports nothing of Tessera's."""
