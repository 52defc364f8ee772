//! `#[derive(State)]`: a machine's state from its fields.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as Tokens;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, parse_macro_input};

/// Makes a struct of `Table`, `Set` and `Cell` fields a `State`.
#[proc_macro_derive(State)]
pub fn derive_state(input: TokenStream) -> TokenStream {
    expand(&parse_macro_input!(input as DeriveInput), &quote!(::chronon_kernel)).into()
}

/// The same for programs that know the kernel only through the facade, which gives it out under the name `State`.
#[proc_macro_derive(FacadeState)]
pub fn derive_facade_state(input: TokenStream) -> TokenStream {
    expand(&parse_macro_input!(input as DeriveInput), &quote!(::chronon)).into()
}

fn expand(input: &DeriveInput, kernel: &Tokens) -> Tokens {
    let fields = match &input.data {
        Data::Struct(data) => &data.fields,
        Data::Enum(data) => {
            let why = "a State is a struct: keep an enum inside one of its tables or cells";
            return syn::Error::new(data.enum_token.span, why).to_compile_error();
        }
        Data::Union(data) => {
            return syn::Error::new(data.union_token.span, "a State is a struct").to_compile_error();
        }
    };
    let name = &input.ident;
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    let field = quote!(#kernel::StateField);
    let drains = fields.members().zip(fields).map(|(member, declared)| {
        let ty = &declared.ty;
        quote_spanned!(ty.span()=> fold.word(<#ty as #field>::drain_writes(&mut self.#member));)
    });
    let written = fields.iter().map(|declared| {
        let ty = &declared.ty;
        quote_spanned!(ty.span()=> <#ty as #field>::Written)
    });
    let names = fields.members().map(|member| match member {
        syn::Member::Named(name) => name.unraw().to_string(),
        syn::Member::Unnamed(place) => place.index.to_string(),
    });
    let reads = fields.members().zip(fields).zip(names.clone()).map(|((member, declared), name)| {
        let ty = &declared.ty;
        quote_spanned!(ty.span()=> #member: <#ty as #field>::read(#name, chunks)?)
    });
    let writes = fields.members().zip(fields).enumerate().map(|(place, (member, declared))| {
        let ty = &declared.ty;
        let place = syn::Index::from(place);
        quote_spanned! {ty.span()=>
            <#ty as #field>::write(
                &self.#member,
                before.map(|(state, written)| (&state.#member, &written.#place)),
                chunks,
            )?
        }
    });
    quote! {
        #[automatically_derived]
        impl #impl_generics #kernel::State for #name #type_generics #where_clause {
            type Written = (#(#written,)*);

            const TABLES: &'static [&'static str] = &[#(#names),*];

            fn drain_writes(&mut self) -> u64 {
                #[allow(unused_mut, reason = "a state without fields folds nothing")]
                let mut fold = #kernel::Fold::EMPTY;
                #(#drains)*
                fold.value()
            }

            #[allow(unused_variables, reason = "a state without fields has no tables")]
            fn write(
                &self,
                before: ::core::option::Option<(&Self, &Self::Written)>,
                chunks: &mut #kernel::ChunkWriter<'_>,
            ) -> ::core::ops::ControlFlow<(), Self::Written> {
                ::core::ops::ControlFlow::Continue((#(#writes,)*))
            }

            #[allow(unused_variables, reason = "a state without fields has no tables")]
            fn read(
                chunks: &mut #kernel::ChunkReader<'_>,
            ) -> ::core::result::Result<Self, #kernel::RestoreError> {
                ::core::result::Result::Ok(Self { #(#reads,)* })
            }
        }
    }
}
