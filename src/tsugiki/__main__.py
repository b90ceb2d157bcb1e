from tsugiki.cli.commands import main

main()
