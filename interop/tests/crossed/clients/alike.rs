//! The traits of this module, implemented by the methods that both clients have.

/// Implements [`Disk`](super::Disk). The differences are arguments.
macro_rules! disk {
    ([$($generics:tt)*] $disk:ty, $together:path, $alone:path, $disconnect:path, $is_lost:path) => {
        impl<$($generics)*> Disk for $disk {
            fn export(&self) -> &ExportInfo {
                self.negotiated().export()
            }

            fn mode(&self) -> HeaderStyle {
                self.negotiated().mode()
            }

            fn contexts(&self) -> &[Context] {
                self.negotiated().contexts()
            }

            fn is_encrypted(&self) -> bool {
                self.negotiated().is_encrypted()
            }

            fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
                let mut buf = vec![0xee; len];
                self.one().read_exact_at(&mut buf, offset)?;
                Ok(buf)
            }

            fn read_with(
                &self,
                offset: u64,
                len: usize,
                flags: CommandFlags,
            ) -> Result<Vec<u8>, Error> {
                let mut buf = vec![0xee; len];
                self.one().read_exact_at_with(&mut buf, offset, flags)?;
                Ok(buf)
            }

            fn write(&self, offset: u64, data: &[u8], flags: CommandFlags) -> Result<(), Error> {
                if flags == CommandFlags::NONE {
                    return self.one().write_all_at(data, offset);
                }
                self.one().write_all_at_with(data, offset, flags)
            }

            fn flush(&self) -> Result<(), Error> {
                self.one().flush()
            }

            fn trim(&self, offset: u64, len: u64, flags: CommandFlags) -> Result<(), Error> {
                self.one().trim(offset, len, flags)
            }

            fn cache(&self, offset: u64, len: u64) -> Result<(), Error> {
                self.one().cache(offset, len)
            }

            fn write_zeroes(
                &self,
                offset: u64,
                len: u64,
                flags: CommandFlags,
            ) -> Result<(), Error> {
                self.one().write_zeroes(offset, len, flags)
            }

            fn block_status(
                &self,
                offset: u64,
                len: u64,
                flags: CommandFlags,
            ) -> Result<Vec<ContextExtents>, Error> {
                self.one().block_status(offset, len, flags)
            }

            fn block_status_of(
                &self,
                ids: &[u32],
                offset: u64,
                len: u64,
            ) -> Result<Vec<ContextExtents>, Error> {
                self.one()
                    .block_status_of(ids, offset, len, CommandFlags::NONE)
            }

            fn extents(&self, range: Range<u64>) -> Result<Vec<StatusRun>, Error> {
                self.one().extents(range).collect()
            }

            fn together(&self, requests: Vec<Request>, depth: usize) -> Vec<Answer> {
                $together(self, requests, depth)
            }

            fn write_alone(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
                $alone(self, offset, data)
            }

            fn disconnect(&self) -> Result<(), Error> {
                $disconnect(self)
            }

            fn is_lost(&self) -> bool {
                $is_lost(self)
            }
        }
    };
}

/// Implements [`Negotiation`](super::Negotiation). The way to a disk of a client is an argument.
macro_rules! negotiation {
    ([$($generics:tt)*] $negotiation:ty, $disk:ty, $entered:expr) => {
        impl<$($generics)*> Negotiation for $negotiation {
            type Disk = $disk;

            fn mode(&self) -> HeaderStyle {
                self.mode()
            }

            fn list(&mut self) -> Result<Vec<ListEntry>, Error> {
                self.list()
            }

            fn info(&mut self, export: &str) -> Result<ExportInfo, Error> {
                self.info(Go::new(ExportName::new(export).unwrap()))
            }

            fn structured_reply(&mut self) -> Result<(), Error> {
                self.structured_reply()
            }

            fn extended_headers(&mut self) -> Result<(), Error> {
                self.extended_headers()
            }

            fn list_meta_context(
                &mut self,
                export: &ExportName,
                queries: &[ContextName],
            ) -> Result<Vec<MetaContextEntry>, Error> {
                self.list_meta_context(export, queries)
            }

            fn set_meta_context(
                &mut self,
                export: &ExportName,
                queries: &[ContextName],
            ) -> Result<Vec<Context>, Error> {
                self.set_meta_context(export, queries)
            }

            fn go(self, export: &str) -> Result<Self::Disk, (Self, OptionError)> {
                let went = self.go(Go::new(ExportName::new(export).unwrap())).unwrap();
                went.into_result().map($entered)
                    .map_err(|refused| (refused.handle, refused.error))
            }

            fn export_name(self, export: &ExportName) -> Result<Self::Disk, Error> {
                self.export_name(export).map($entered)
            }

            fn abort(self) {
                self.abort();
            }
        }
    };
}

/// Turns [`Wanted`](super::Wanted) into options of either kind.
macro_rules! wanted {
    ($options:expr, $wanted:expr) => {
        CONTEXTS.iter().fold(
            $options
                .local_files(true)
                .structured_replies($wanted.mode != HeaderStyle::Simple)
                .extended_headers($wanted.mode == HeaderStyle::Extended),
            |options, name| options.context(context(name)),
        )
    };
}

/// Begins a negotiation, with certificates if there are any.
macro_rules! started {
    ($options:expr, $uri:expr, $certificates:expr) => {{
        let options = match $certificates {
            Some(directory) => $options.tls(ClientTls::new().directory(directory).unwrap()),
            None => $options,
        };
        options.start($uri).unwrap().negotiation().unwrap()
    }};
}
