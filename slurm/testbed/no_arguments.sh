# Sourced by scripts without arguments: print "$usage" for --help, and refuse everything else with exit code 2.
case "${1-}" in
    "") ;;
    -h | --help)
        echo "$usage"
        exit 0
        ;;
    *)
        printf 'error: unknown argument %q\n%s\n' "$1" "$usage" >&2
        exit 2
        ;;
esac
