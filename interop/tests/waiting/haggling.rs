//! Negotiation step by step.

use super::{Client, Driver};
use nbd_io::client::{Error, Refused, shared};
use nbd_proto::{
    ContextName, ExportInfo, ExportName, Mode,
    client::{Context, Encrypted, Go, ListEntry, MetaContextEntry, Plain},
};

#[derive(Debug)]
pub(crate) enum Greeted<D: Driver> {
    Options(Haggling<D, Plain>),
    ByName(ByName<D>),
    Entered(Entered<D>),
}

impl<D: Driver> Greeted<D> {
    pub(super) fn new(greeted: shared::Greeted<D::Network>, driver: D) -> Self {
        match greeted {
            shared::Greeted::Options(inner) => Self::Options(Haggling { inner, driver }),
            shared::Greeted::ByName(inner) => Self::ByName(ByName { inner, driver }),
            shared::Greeted::Entered(inner) => Self::Entered(Entered { inner, driver }),
        }
    }

    pub(crate) fn options(self) -> Option<Haggling<D, Plain>> {
        match self {
            Self::Options(haggling) => Some(haggling),
            Self::ByName(_) | Self::Entered(_) => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct ByName<D: Driver> {
    inner: shared::ByName<D::Network>,
    driver: D,
}

impl<D: Driver> ByName<D> {
    pub(crate) fn export_name(self, name: &ExportName) -> Result<Client<D>, Error> {
        let Self { inner, driver } = self;
        let inner = driver.wait(inner.export_name(name))?;
        Ok(Client { inner, driver })
    }
}

#[derive(Debug)]
pub(crate) struct Entered<D: Driver> {
    inner: shared::Entered<D::Network>,
    driver: D,
}

impl<D: Driver> Entered<D> {
    pub(crate) const fn export(&self) -> &ExportInfo {
        self.inner.export()
    }

    pub(crate) fn accept(self) -> Result<Client<D>, Error> {
        let Self { inner, driver } = self;
        let inner = driver.wait(inner.accept())?;
        Ok(Client { inner, driver })
    }
}

#[derive(Debug)]
pub(crate) struct Haggling<D: Driver, S> {
    inner: shared::Haggling<D::Network, S>,
    driver: D,
}

impl<D: Driver, S> Haggling<D, S> {
    pub(super) const fn new(inner: shared::Haggling<D::Network, S>, driver: D) -> Self {
        Self { inner, driver }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.inner.mode()
    }

    pub(crate) fn list(&mut self) -> Result<Vec<ListEntry>, Error> {
        self.driver.wait(self.inner.list())
    }

    pub(crate) fn info(&mut self, request: Go) -> Result<ExportInfo, Error> {
        self.driver.wait(self.inner.info(request))
    }

    pub(crate) fn structured_reply(&mut self) -> Result<(), Error> {
        self.driver.wait(self.inner.structured_reply())
    }

    pub(crate) fn extended_headers(&mut self) -> Result<(), Error> {
        self.driver.wait(self.inner.extended_headers())
    }

    pub(crate) fn list_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<MetaContextEntry>, Error> {
        self.driver
            .wait(self.inner.list_meta_context(export, queries))
    }

    pub(crate) fn set_meta_context(
        &mut self,
        export: &ExportName,
        queries: &[ContextName],
    ) -> Result<Vec<Context>, Error> {
        self.driver
            .wait(self.inner.set_meta_context(export, queries))
    }

    pub(crate) fn abort(self) {
        self.driver.wait(self.inner.abort());
    }
}

macro_rules! entering {
    ($security:ty) => {
        impl<D: Driver> Haggling<D, $security> {
            pub(crate) fn go(self, request: Go) -> Result<Result<Client<D>, Refused<Self>>, Error> {
                let Self { inner, driver } = self;
                Ok(match driver.wait(inner.go(request))? {
                    Ok(inner) => Ok(Client { inner, driver }),
                    Err(refused) => Err(again(refused, driver)),
                })
            }

            pub(crate) fn export_name(self, name: &ExportName) -> Result<Client<D>, Error> {
                let Self { inner, driver } = self;
                let inner = driver.wait(inner.export_name(name))?;
                Ok(Client { inner, driver })
            }
        }
    };
}

entering!(Plain);
entering!(Encrypted);

impl<D: Driver> Haggling<D, Plain> {
    pub(crate) fn start_tls(self) -> Result<Result<Haggling<D, Encrypted>, Refused<Self>>, Error> {
        let Self { inner, driver } = self;
        Ok(match driver.wait(inner.start_tls())? {
            Ok(inner) => Ok(Haggling { inner, driver }),
            Err(refused) => Err(again(refused, driver)),
        })
    }
}

/// What can go on after a refusal.
fn again<D: Driver, S>(
    refused: shared::RefusedStep<D::Network, S>,
    driver: D,
) -> Refused<Haggling<D, S>> {
    let Refused {
        handle: inner,
        error,
    } = refused;
    Refused {
        handle: Haggling { inner, driver },
        error,
    }
}
