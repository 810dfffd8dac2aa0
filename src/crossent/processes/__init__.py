"""Several processes that share a run: who they are, how they are started, and what they agree on.

A process of a run is a rank. ``world`` says which one this process is, ``choosing`` which ones a run takes.
``launcher`` starts those of this machine, and ``watching`` sees how they end; ``outside`` is for those that torchrun or
srun have started. ``rank`` is what each of them does, ``meeting`` how they find one another, ``together`` what they
tell one another while they do it, and ``strategy`` what Lightning has to know of it.
"""
