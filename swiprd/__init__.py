"""swipr's daemon. This page says which processes it is made of; the folders say how each is built.

    systemd, a shell or swiprctl
    └── front                   one                     swiprd.front, swiprd.pool
        ├── intake              a few for each uid      swiprd.intake
        ├── forkserver          one for each model      swiprd.inference.forkserver
        │   └── worker          as calibrated, and one  swiprd.inference.worker
        └── compile, prove      once for a model        swiprd.inference.compile, .prove

`swiprd serve` that has answered one picture of root's, calibrated for two workers; the third worker
is the standby (memory in KiB; the forkserver's and the workers' is mostly shared):

    $ ps -ww -o pid,ppid,rss,comm,args
      PID  PPID   RSS COMMAND         COMMAND
     1475     1 28496 swiprd          /usr/bin/python3 swiprd serve --socket s.sock
     1581  1475 21792 swiprd-intake   /usr/bin/python3 swiprd serve --socket s.sock
     1508  1475 246132 python3        /usr/bin/python3 -P -m swiprd.inference.forkserver 1475 8
     1517  1508 247036 python3        /usr/bin/python3 -P -m swiprd.inference.forkserver 1475 8
     1518  1508 216268 python3        /usr/bin/python3 -P -m swiprd.inference.forkserver 1475 8
     1666  1508 216268 python3        /usr/bin/python3 -P -m swiprd.inference.forkserver 1475 8

front: one thread, an asyncio loop. Accepts clients, parses frames, keeps the queue and the
    deadlines, decides which process lives. Imports the standard library, msgpack and sdnotify;
    never torch, numpy or Pillow. Never opens a path that a client names, reads an image from a
    user's file or receives a client's descriptor; waits for nothing but its loop.
    Ends on SIGTERM or SIGINT, or when idle for `idle_timeout`: it answers what it has accepted, for
    25 s at most, then lets the other processes leave. Its parent reaps it.

intake: forked from the front, without exec, when a uid's client first passes a descriptor. Receives
    it, checks that it is a regular file, says which image it is, copies a file that lies on FUSE or
    a network into memory, and closes descriptors: whatever may block for as long as a file system
    likes. Imports what the front does. Holds no descriptor of another uid, decodes nothing.
    Ends on EOF from the front, after 60 s without work, or by the kernel's SIGKILL when the front
    dies (PR_SET_PDEATHSIG). One that is blocked in its file system ends when that answers. The
    front reaps it.

forkserver: started by the front with exec, so that no torch is in the front; the first before the
    front imports most of itself (swiprd.pool.forkserver_process). Imports what runs the model:
    onnxruntime, where the model has a compiled form that is proven and no slower, or is an ONNX
    file, or else torch; never both (swiprd.inference.engines). Loads the model once and forks a
    worker when told to: 10 ms, and the weights are shared. Runs no forward pass and starts no
    thread, because a fork would not have it; initialises no CUDA, decodes no image. A new model is
    loaded by a second forkserver beside the first.
    Ends on EOF from the front, after it has killed and reaped its workers; by SIGKILL when the
    front dies. The front reaps it, and starts another where it died by itself.

worker: forked from the forkserver. Reads the image's descriptor, decodes, preprocesses, runs the
    forward pass, answers; one batch at a time. Imports what the forkserver has, and nothing more:
    its own code knows no torch, only the engine that it inherits (swiprd.inference.engine). Has
    one socket, to the front, opens no path and keeps no state from one batch to the next.
    Ends on EOF; by the front's SIGKILL through a pidfd, at a deadline or when its answers are
    wrong; by SIGPROF, where a decoder takes too long; by SIGKILL when the forkserver dies. The
    forkserver reaps it and tells the front the exit status.

compile, prove: started by the front, one after the other, when nobody asks for anything and torch
    serves a model that has no compiled form yet; beside whatever else runs they do not get on
    (SCHED_IDLE). compile imports torch, exports the network and writes down what torch answers to
    17 pictures; prove imports onnxruntime and not torch, and keeps the export if it answers them
    alike. What they make lies in the cache, and a second forkserver then takes over with it.
    They end when done, after 15 minutes by the front's SIGKILL, or when the front dies. The front
    reaps them.

`swiprd check`, `swiprd pack` and `swiprd trust` are commands in a process of their own, without a
daemon; check and pack import torch, except for an ONNX file. pack runs compile and prove as
processes of its own, one that tries an ONNX file (swiprd.inference.onnx_probe), and one that
exports a network of transformers (swiprd.pack.hf_export); check and pack run one with the ONNX
file or the compiled form of the folder (swiprd.inference.separate).

Imports between the folders go one way, and tests/house/test_house.py holds them to it: front →
intake, pool → folder → system; inference and pack → folder, system. The client, swiprctl, imports
nothing of swiprd; swiprd imports of it `errors`, `protocol` and `version`.
"""
