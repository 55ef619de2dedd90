"""Project files: into the store, onto the node, under a run, and back.

Read `trees` and `store` for what is kept, `blobs` and `snapshots` for the node's cache,
`project_files` for a run's way through it, `changes` and `keep` for the way back, `push` and
`pull` for clients.
"""
