"""The Gecko model as a Relax graph, one module per block, named as in the checkpoint."""
