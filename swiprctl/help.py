"""What `swiprctl --help` says. Imported for that alone."""

TEXT = """\
Usage: swiprctl predict [OPTION]... PATH...
       swiprctl predict -r [OPTION]... [FOLDER]...
       swiprctl predict [OPTION]... --files-from=F | --files0-from=F
       swiprctl select [OPTION]... CONDITION PATH... | --files-from=F | ...
       swiprctl sheet [--relative-to=DIR] [ROWS] > PAGE
       swiprctl status | model | ping | list | reload | stop [OPTION]...

Ask the local image classifier. `predict` prints a CSV row of probabilities for
each image, in the order given; an image that fails gets a line on standard
error and no row. PATH may be - for standard input. Where no daemon runs, one is
started; it leaves after five idle minutes.

  predict     the probabilities of images
  select      the paths of the images whose row fulfils a condition
  sheet       a page of the pictures, from a file of rows, to see in a browser
  status      how the daemon is: its workers, queue, and what it had to kill
  model       what is served: its id, labels, thresholds, input size, versions
  ping        send a known image through a live worker and check the answer
  list        every daemon that you can reach: its model, state, memory, log
  reload      read the model anew (root and the daemon's own user)
  stop        have a daemon of your own finish what it has, and leave
  help        this text
  version     the version

Inputs of predict:
  -r, --recursive      the images below each PATH that is a folder (default: .),
                       told by their first bytes; other files are left out
  --hidden             with -r: names that begin with a dot, too
  -L, --follow         with -r: go where symbolic links lead
  --one-file-system    with -r: stay out of what is mounted below a PATH
  --files-from=F       read the paths from F, one a line (- for standard input)
  --files0-from=F      the same, each ended by a NUL, as find -print0 does it

Output of predict:
  -H, --with-filename  put the path in front of each row (the default for more
                       than one)
  -h, --no-filename    do not
  --header             print the row of labels first
  --labels             print label,probability pairs, the best first; of a model
                       that has thresholds, only the labels that reach theirs
  --top N              the N best pairs
  --with-model         put the model's id in front of the probabilities
  --json               print a JSON object a line, with labels and timings
                       (also status, model and list)
  --format=FORMAT      csv (the default), tsv, or jsonl, which is --json
  --errors             print failures as rows or objects, too, not on standard
                       error
  --sort=LABEL         sort the rows by this label's probability, the highest
                       first
  --reverse            the lowest first
  --limit=N            of the sorted rows, only the first N
  --output=FILE        write the rows to FILE, in the format that its name says:
                       .csv, .tsv, .jsonl
  --resume             go on with FILE: leave out what it has and is unchanged
  --force              begin FILE anew, whatever is in it
  --where CONDITION    print the rows that fulfil it, and no others
  --no-progress        do not tell on the terminal how far it is
  -q, --quiet          errors only: no progress, no summary, no notes

Of status and stop:
  --prometheus         print the status as metrics, for node_exporter's textfile
                       collector
  --all                stop all daemons of your own

Of select, which takes the same lists, and exits as grep does: 0 if a path was
printed, 1 if none was, 2 if something failed:
  -v, --invert-match   the images that do not (elsewhere, -v is --verbose)
  -0, --null           end each path by a NUL, for xargs -0
A CONDITION is made of labels, numbers, > >= < <= == !=, and, or, not, brackets:
'blurred > 0.8 and not top == "cat"'. top is the best label. A label with blanks
or other signs is put between quotation marks. By itself, a label reaches the
threshold that its model has for it.

Of sheet:
  --relative-to=DIR    where the page will be (default: the current directory)

Which daemon, and for how long:
  --model NAME         the system's daemon for this model: /run/swipr/NAME.sock;
                       with a slash, a model's folder: a daemon of your own for
                       it (default: $SWIPR_MODEL)
  --socket PATH        the daemon on this socket (default: $SWIPR_SOCKET, then
                       /run/swipr/default.sock, then your own)
  --no-autostart       do not start a daemon
  --timeout S          seconds for each image, from opening it to its answer
                       (default: 10)
  -v, --verbose        tell on standard error which socket, what each image
                       took, and which had to be sent again, and why
  -V, --version, --help

SIGUSR1 prints a summary: what is answered, what has failed and why, how fast.

Exit status: 0 all went well, 64 usage, 65 not an image or too large, 66 cannot
open the file, 69 no daemon, 70 the image crashed its worker, 73 no such output
file, 74 output failed, 75 try later, 76 not this protocol, 77 no permission,
124 deadline. With several inputs: 1 if some failed.
"""
