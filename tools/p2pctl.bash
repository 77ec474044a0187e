# Completion of p2pctl for bash: commands, options, paths inside the swarm (asked of p2pd), files.

_p2pctl_options() {
    case $1 in
    key) echo "--passphrase-file --new-passphrase-file --remove --json" ;;
    start) echo "--passphrase-file --json" ;;
    register) echo "--email --password-file --json" ;;
    login) echo "--password-file --totp-file --json" ;;
    reset) echo "--url --code-file --new-password-file --json" ;;
    email) echo "--password-file --code-file --url --json" ;;
    totp) echo "--password-file --totp-file --json" ;;
    audit) echo "--since --account --count --json" ;;
    whoami) echo "--tracker --json" ;;
    passwd) echo "--password-file --new-password-file --logout-others --json" ;;
    invite) echo "--admin --uses --expires --json" ;;
    status) echo "--watch --json" ;;
    health) echo "--all --json" ;;
    limit) echo "--up --down --json" ;;
    ls) echo "--long --json" ;;
    check) echo "--repair --recover --pause --resume --json" ;;
    logout | devices | user | grant | revoke | access | group | keys | start | stop | peers | get | pin | unpin | evict | watch) echo "--json" ;;
    esac
}

# Paths inside the swarm that begin with $1; directories end in "/".
_p2pctl_swarm_paths() {
    local directory=${1%/*}/ home=$2 line kind=''
    p2pctl ${home:+--home "$home"} ls --json -- "$directory" 2>/dev/null |
        sed -n 's/^ *"kind": "\(.*\)",\{0,1\}$/\1/p; s/^ *"name": "\(.*\)",\{0,1\}$/n\1/p' |
        while IFS= read -r line; do
            case $line in
            n*)
                line=$directory${line#n}
                [ "$kind" != directory ] || line=$line/
                [[ $line != "$1"* ]] || printf '%s\n' "$line"
                ;;
            *) kind=$line ;;
            esac
        done
}

_p2pctl() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} verb='' home='' i
    local verbs="register login logout whoami passwd reset email totp devices user audit invite grant revoke access group keys key start stop status peers health get pin unpin limit evict check ls watch help"

    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --passphrase-file | --new-passphrase-file) ((i++)) ;;
        --home)
            home=${COMP_WORDS[i + 1]/#\~/$HOME}
            ((i++))
            ;;
        --email | --password-file | --new-password-file | --code-file | --totp-file | --url | --account | --since | --count | --uses | --expires) ((i++)) ;;
        -*) ;;
        *) [ -n "$verb" ] || verb=${COMP_WORDS[i]} ;;
        esac
    done
    case $previous in
    --passphrase-file | --new-passphrase-file)
        compopt -o default
        return
        ;;
    --home)
        compopt -o dirnames
        return
        ;;
    --password-file | --new-password-file | --code-file | --totp-file)
        compopt -o default
        return
        ;;
    --email | --url | --account | --since | --count | --uses | --expires) return ;;
    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_p2pctl_options "$verb") --home --help --version" -- "$current")
        return
    fi
    case $verb:$previous in
    user:user) mapfile -t COMPREPLY < <(compgen -W "list show disable enable delete admin totp-off quota transfer" -- "$current") ;;
    email:email) mapfile -t COMPREPLY < <(compgen -W "set send verify" -- "$current") ;;
    totp:totp) mapfile -t COMPREPLY < <(compgen -W "enable confirm disable recovery" -- "$current") ;;
    devices:devices) mapfile -t COMPREPLY < <(compgen -W "remove" -- "$current") ;;
    esac
    case $verb in
    key) COMPREPLY=(passphrase) ;;
    '' | help) mapfile -t COMPREPLY < <(compgen -W "$verbs" -- "$current") ;;
    keys) [ "$previous" != keys ] || mapfile -t COMPREPLY < <(compgen -W "accept" -- "$current") ;;
    group)
        [ "$previous" != group ] || mapfile -t COMPREPLY < <(compgen -W "create delete add remove list" -- "$current")
        ;;
    status | peers | health | get | pin | unpin | evict | limit | check | ls | watch | grant | revoke | access)
        compopt -o filenames
        [[ $current != /* ]] || mapfile -t COMPREPLY < <(_p2pctl_swarm_paths "$current" "$home")
        [ ${#COMPREPLY[@]} -ne 0 ] || mapfile -t COMPREPLY < <(compgen -f -- "$current")
        [[ ${#COMPREPLY[@]} -ne 1 || ${COMPREPLY[0]} != */ ]] || compopt -o nospace
        ;;
    esac
}

complete -F _p2pctl p2pctl
