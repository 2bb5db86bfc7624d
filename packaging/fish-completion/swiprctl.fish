# fish completion for swiprctl(1). A command is a line, and an option is.

function __swiprctl_models
    for socket in /run/swipr/*.sock
        basename $socket .sock
    end
    __fish_complete_directories
end

set -l commands help list model ping predict reload select sheet status stop version
set -l no_command "not __fish_seen_subcommand_from $commands"

complete -c swiprctl -f
complete -c swiprctl -n '__fish_seen_subcommand_from predict select sheet' -F

complete -c swiprctl -n $no_command -a help -d 'print a summary'
complete -c swiprctl -n $no_command -a list -d 'every daemon that you can reach'
complete -c swiprctl -n $no_command -a model -d 'what is served'
complete -c swiprctl -n $no_command -a ping -d 'send a known image through a live worker'
complete -c swiprctl -n $no_command -a predict -d 'the probabilities of images'
complete -c swiprctl -n $no_command -a reload -d 'read the model anew'
complete -c swiprctl -n $no_command -a select -d 'the paths of images that fulfil a condition'
complete -c swiprctl -n $no_command -a sheet -d 'a page of the pictures'
complete -c swiprctl -n $no_command -a status -d 'how the daemon is'
complete -c swiprctl -n $no_command -a stop -d 'have a daemon of your own leave'
complete -c swiprctl -n $no_command -a version -d 'print the version'

complete -c swiprctl -l all -d 'stop all daemons of your own'
complete -c swiprctl -l errors -d 'print failures as rows, too'
complete -c swiprctl -l files-from -r -F -d 'read the paths from a file, one a line'
complete -c swiprctl -l files0-from -r -F -d 'read the paths from a file, each ended by a NUL'
complete -c swiprctl -l follow -s L -d 'go where symbolic links lead'
complete -c swiprctl -l force -d 'begin the output file anew'
complete -c swiprctl -l format -x -a 'csv tsv jsonl' -d 'what the rows are written as'
complete -c swiprctl -l header -d 'print the row of labels first'
complete -c swiprctl -l help -d 'print a summary'
complete -c swiprctl -l hidden -d 'take names that begin with a dot, too'
complete -c swiprctl -l invert-match -d 'the images that do not fulfil the condition'
complete -c swiprctl -l json -d 'print JSON'
complete -c swiprctl -l labels -d 'print pairs of label and probability'
complete -c swiprctl -l limit -x -d 'of the sorted rows, only so many'
complete -c swiprctl -l model -x -a '(__swiprctl_models)' -d 'the model, or its folder'
complete -c swiprctl -l no-autostart -d 'do not start a daemon'
complete -c swiprctl -l no-filename -s h -d 'no path in front of the rows'
complete -c swiprctl -l no-progress -d 'do not tell how far it is'
complete -c swiprctl -l null -s 0 -d 'end each path by a NUL'
complete -c swiprctl -l one-file-system -d 'stay out of what is mounted below'
complete -c swiprctl -l output -r -F -d 'write the rows to a file'
complete -c swiprctl -l prometheus -d 'print the status as metrics'
complete -c swiprctl -l quiet -s q -d 'errors only'
complete -c swiprctl -l recursive -s r -d 'the images below each folder'
complete -c swiprctl -l relative-to -x -a '(__fish_complete_directories)' -d 'where the page will be'
complete -c swiprctl -l resume -d 'go on with the output file'
complete -c swiprctl -l reverse -d 'the lowest first'
complete -c swiprctl -l socket -r -F -d 'the socket of the daemon'
complete -c swiprctl -l sort -x -d 'sort by the probability of this label'
complete -c swiprctl -l timeout -x -d 'how long each image may take, in seconds'
complete -c swiprctl -l top -x -d 'the best pairs'
complete -c swiprctl -l verbose -s v -d 'tell what each image took'
complete -c swiprctl -l version -s V -d 'print the version'
complete -c swiprctl -l where -x -d 'only the rows that fulfil the condition'
complete -c swiprctl -l with-filename -s H -d 'the path in front of each row'
complete -c swiprctl -l with-model -d 'the id of the model in front'
