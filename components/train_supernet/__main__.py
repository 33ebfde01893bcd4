from components.train_supernet.step import main

raise SystemExit(main())
